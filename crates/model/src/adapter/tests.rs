//! Adapters of small models.
