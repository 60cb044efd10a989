"""Logs and error messages go to users; where things lie on the server does not."""

import sys
import sysconfig
from pathlib import Path


def without_server_paths(text: str, run_dir: Path) -> str:
    places = {
        f"{run_dir}/": "",
        str(run_dir): ".",
        sysconfig.get_path("purelib"): "site-packages",
        sysconfig.get_path("stdlib"): "python",
        sys.prefix: "python",
        sys.base_prefix: "python",
        f"{Path(__file__).parents[1]}/": "",
    }
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(place, places[place])
    return text
