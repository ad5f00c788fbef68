//! Empty: this package exists for its tests, and Cargo requires a target beside them.
