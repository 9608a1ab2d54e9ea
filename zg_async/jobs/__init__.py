"""Jobs: one end-to-end fine-tuning run each, driven from a journal so that it survives any crash."""
