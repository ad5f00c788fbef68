//! Empty: the crate exists for its tests.
