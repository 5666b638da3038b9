"""All that reaches into DeepSpeed: what an upgrade of it has to read. Held against the source of 0.19.8.

What is taken from it beyond what it documents, and which test fails where it moves (in `tests/engine`):

- `bucket_reduction`: `_grad_acc_hooks`, `reduce_ipg_grads`, `_use_compact_grad_partition_buffer` (where it is missing,
  DeepSpeed's own way stays) and the optimizer's other switches, `_get_compact_grad_partition_buffer`, `get_param_id`,
  `partition_size`, offsets of gradients; `test_bucket_reduction`.
- `device_skip`: `averaged_gradients`, `compute_grad_norm`; `test_deferred_updates`.
- `ds_engine`: `groups._WORLD_GROUP`, `ops.__compatible_ops__`; no test. `checkpoint_event_prologue`;
  `tests/integration/test_shipped_engines.py`.
- `ds_teachers`: `ds_tensor` and `ds_numel` of cut parameters; `test_ds_engine`.
- `gradient_order`: that gradients are summed in the order in which they are ready; `test_gradient_order`.
- `lone_gradients`: `_get_compact_grad_partition_buffer`, the flat groups of weights; `test_bucket_reduction`.
- `lone_rank`: `buffered_reduce_fallback`, `get_grad_norm_direct`, `_link_all_hp_params`, the flat groups of weights;
  `test_lone_rank`.
- `masters`: `_hp_mapping` and `ds_id` of parameters; `tests/downstream/test_master_mean.py`.
- `own_settings`: what `load_checkpoint` overwrites of optimizer and schedule; `test_changed_settings`.
- `part_gradients`: `_build_compact_grad_partition_buffer`, and what is read of a `GradPartitionBufferGroup`;
  `test_part_gradients`.
- `repeated_work`: `_update_model_bit16_weights`, the flat groups of weights and where weights begin in them;
  `test_repeated_work`.

Outside of this folder, `engine/checkpoints` knows `ds_id`, and which classes DeepSpeed's pickles name (`pickles`).
"""
