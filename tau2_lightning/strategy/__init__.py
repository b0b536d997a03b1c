"""ArchonStrategy: data, pipeline, tensor, context and expert parallel training inside Lightning."""
