//! The program `balm`.
fn main() {}
