from .costs import CostTable as CostTable
from .costs import RelativeCosts as RelativeCosts
from .live import LiveError as LiveError
from .live import live_problem as live_problem
from .recorded import RecordedError as RecordedError
from .recorded import from_recording as from_recording
