"""The demo in Gradio, as the original's was: a prompt, a temperature, a length (`kogpt demo`)."""
