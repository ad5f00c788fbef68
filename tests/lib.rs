//! Empty: this package exists for its tests, which Cargo lets stand only beside a library.
