//! The README does what it says.
