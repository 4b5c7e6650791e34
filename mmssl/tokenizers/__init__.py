"""Raw modality <-> tokens, one file a modality."""
