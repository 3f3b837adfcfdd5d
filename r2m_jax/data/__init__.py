"""Data: records, indexes, decoding, pipelines, the forge."""
