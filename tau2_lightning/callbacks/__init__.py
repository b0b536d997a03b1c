"""Lightning callbacks: progress on screen, checkpoints, tau2 results files, weight sync.

A callback of your own is any ``lightning.Callback``. ``conf/callbacks/`` lists those of a run. The command line adds
one by ``callbacks.mine._target_=my_package.MyCallback`` (further keys of that entry are arguments of its constructor)
and removes one by ``~callbacks.progress``. A constructor that has a parameter ``folder`` gets the ``RunFolder``, one
that has a parameter ``config`` gets the ``RunConfig``.

What it may read is in ``callbacks.seams``: ``module_of(pl_module)`` has the numbers of the newest step and validation,
``data_of(trainer)`` the evaluations, the engine's progress and the seconds by phase. In ``on_train_batch_end`` the
weights of that step are not in the engine yet: the module publishes them right after all callbacks have run.
"""
