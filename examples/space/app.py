"""A Hugging Face Space: `kogpt demo` with the model that the variable KOGPT_MODEL names."""

import os

from kogpt import KoGPT
from kogpt.demo.app import launch

launch(KoGPT.from_pretrained(os.environ.get("KOGPT_MODEL", "kogpt-mini")))
