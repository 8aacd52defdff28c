//! Compiles `models/predictor.onnx` into the plan that the module executes.
fn main() {}
