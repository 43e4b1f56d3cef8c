from .formats import FORMATS as FORMATS
from .formats import Projection as Projection
from .formats import StepPolicy as StepPolicy
from .formats import export as export
from .formats import project as project
from .pipeline import apply as apply
from .pipeline import describe as describe
from .pipeline import remove as remove
