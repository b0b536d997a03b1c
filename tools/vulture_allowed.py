"""Names that no code of the package uses and that are not dead: the allow-list of vulture (`make lint`).

One block for each reason. A name that fits no block is dead code: remove it instead of listing it.
"""

# ruff: noqa: B018, F821

# Called by torch, transformers, tokenizers, uvicorn or tau2 on objects of ours, or read by them.
_.optimizer_state
_.distributed_sampler_kwargs
_.reduce_boolean_decision
_.load_model_state_dict
_.load_optimizer_state_dict
_.load_checkpoint
_.strategy_name
_._attn_implementation
_.use_cache
_.architectures
_.writeable
_.pre_tokenizer
_.decoder
_.should_exit
_.install_signal_handlers
_.capture_signals
_.daemon_threads
_.set_seed
_.client_session
_.aclient_session
_.turn_idx
_.has_tool
_.is_differentiable
_.higher_is_better
_.full_state_update
_.skip_clone
_.showwarning
_.excepthook
_.find_class
_.process_request
_.handle_error
_.send_400_response
_.num_sanity_val_steps

# Loaded by name: inside vLLM, by its command line or its registries.
_.RequireKey
_.FastGenerate
_.CpuSeconds
_.TakeWeights
_.RoutedExpertsScheduler
_.RoutedExpertsWorker
_.aux_output_connector
_.aux_output_connector_output
_.CudaEngine
_.init_info_cls
_.update_info_cls
_.init_transfer_engine
_.start_weight_update
_.finish_weight_update
_.get_offset
_.set_offset
_.set_tied_head_repair

# Named by `_target_` in conf/.
_.RolloutFiles
_.PhaseRecord
_.NewestCheckpoints
_.PolicyExports
_.RunProgress
_.ResultsFiles
_.TrainingHealth
_.RankWatch
_.KLRate
_.tensorboard

# Public: a metric for validation loops of a user's own.
_.PassHatK

# Read by name: fields that are logged, sent or referred to in conf/.
_.has_signal
_.waited_s
_.mean_tool_calls
_.tool_call_id
_.function_call
_.checkpoint_every_n_epochs
_.checkpoint_every_n_steps
_.checkpoint_every_n_minutes
_.save_top_k
_.export_every_n_steps

# Read by name: columns of kept episodes.
_.tau2_reward
_.termination
_.n_turns
_.staleness

# Read by torch: attributes of a learning-rate schedule.
_.base_lrs
_.lr_lambdas

# Parameters that an interface of another library requires.
protocol
dataloader_idx
frame
init_info
weights_only
msg

# Used in casts, which vulture does not read.
LightningOptimizer
LRScheduler
_.validating
_._check_log_dir_exists
_._rewrite_with_new_header

# Read inside SGLang, or by torch, under these names.
_.__spec__
_.__path__
_.assign_req_to_token_pool_cpu
_.pin_memory
_.rootRank
pin_memory
