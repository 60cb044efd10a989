def pytest_generate_tests(metafunc):
    """Every test of a store is a test of every store."""
    if "store" in metafunc.fixturenames:
        metafunc.parametrize("store", ["postgres", "file"], indirect=True)
