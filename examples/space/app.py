"""A Hugging Face Space: `kogpt demo` with the model that the variable KOGPT_MODEL names."""

import os

from kogpt import KoGPT
from kogpt.demo.app import launch
from kogpt.tasks.filter import TextFilter

model = KoGPT.from_pretrained(os.environ.get("KOGPT_MODEL", "kogpt-mini"))
model.use_screen(TextFilter("mask").stream, logprobs=True)
launch(model)
