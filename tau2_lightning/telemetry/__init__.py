"""What a run observes about itself: seconds by phase, memory, metrics of a step."""
