from .engine import PrefixEngine as PrefixEngine
from .recorder import record as record
from .recording import Recording as Recording
from .replay import NonFiniteLatentsError as NonFiniteLatentsError
from .workload import Workload as Workload
