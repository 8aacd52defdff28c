//! The filter (to come).
