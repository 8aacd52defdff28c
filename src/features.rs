//! Prompt text to hashed slots and surface features; bounded work whatever the prompt's size.
