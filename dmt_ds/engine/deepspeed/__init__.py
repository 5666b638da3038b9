"""All that reaches into DeepSpeed: what an upgrade of it has to read."""
