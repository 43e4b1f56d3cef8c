from .analysis import analyse as analyse
from .design import joint_design as joint_design
from .inference import additivity_test as additivity_test
from .predictors import PREDICTORS as PREDICTORS
from .records import AdditivityReport as AdditivityReport
from .records import AdditivityTest as AdditivityTest
