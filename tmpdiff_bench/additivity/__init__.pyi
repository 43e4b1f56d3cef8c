from .analysis import analyse as analyse
from .inference import additivity_test as additivity_test
from .predictors import PREDICTORS as PREDICTORS
from .records import AdditivityTest as AdditivityTest
from .result import AdditivityReport as AdditivityReport
