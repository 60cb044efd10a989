from app.db.tables import Comparison
from app.repository import TenantRepository


class ComparisonRepository(TenantRepository[Comparison]):
    table = Comparison
