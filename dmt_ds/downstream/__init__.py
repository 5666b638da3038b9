"""Is an encoder any good: evaluation on frozen features and by training; knows no distillation."""
