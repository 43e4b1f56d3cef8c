from .formats import FORMATS as FORMATS
from .formats import export as export
from .pipeline import apply as apply
from .pipeline import describe as describe
from .pipeline import remove as remove
from .policy import StepPolicy as StepPolicy
from .projection import Projection as Projection
from .projection import project as project
