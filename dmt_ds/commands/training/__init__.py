"""`dmt-ds pretrain` and `finetune`, and the parts that they put together."""
