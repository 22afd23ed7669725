"""One language model: its forward pass, its samples, its text as token ids, how it is loaded and adapted."""
