"""tau2-bench: tasks, databases, users, demonstrations, scoring and results files. The only code that imports tau2."""
