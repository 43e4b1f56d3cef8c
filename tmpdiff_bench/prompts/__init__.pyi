from .base import COLUMNS as COLUMNS
from .base import Prompts as Prompts
from .base import PromptSource as PromptSource
from .base import take as take
from .sources import DEFAULT_SET as DEFAULT_SET
from .sources import SOURCES as SOURCES
from .sources import prompt_source as prompt_source
