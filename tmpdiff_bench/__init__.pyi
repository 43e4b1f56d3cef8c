from .additivity import additivity_test as additivity_test
from .additivity import analyse as analyse
from .deploy import allocate as allocate
from .deploy import apply as apply
from .deploy import describe as describe
from .deploy import remove as remove
from .errors import UsageError as UsageError
from .experiment import Experiment as Experiment
from .plan import JointPlan as JointPlan
from .plan import PrecisionPlan as PrecisionPlan
from .trajectory import Recording as Recording
from .trajectory import record as record

__version__: str
__all__: list[str]
