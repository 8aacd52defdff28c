//! Stands in for the crate `inventory`, by which tract registers its run times, graph transforms and settings at start-up.
//!
//! RouteBalance uses none of them, but what is registered cannot be dropped by the linker: with the real crate the module is more
//! than twice as large, and Envoy compiles it that much longer. Here nothing is ever registered, and every list is empty.

#![no_std]
#![forbid(unsafe_code)]

use core::iter::Empty;
use core::ops::Deref;

/// Declares a list.
#[macro_export]
macro_rules! collect {
    ($type:ty) => {};
}

/// Registers nothing.
#[macro_export]
macro_rules! submit {
    ($($value:tt)*) => {};
}

/// The list of what is registered. As in the real crate it is written both `iter::<T>` and `iter::<T>()`, which a generic enum
/// with a variant of its own name allows.
#[allow(non_camel_case_types, reason = "the real crate's name")]
pub enum iter<T: 'static> {
    /// Uses the type parameter; cannot be made.
    #[doc(hidden)]
    Never(core::convert::Infallible, core::marker::PhantomData<T>),
    /// The list.
    iter,
}
pub use self::iter::*;

impl<T> Deref for iter<T> {
    type Target = fn() -> Empty<&'static T>;

    fn deref(&self) -> &Self::Target {
        const { &(core::iter::empty as fn() -> Empty<&'static T>) }
    }
}

impl<T> IntoIterator for iter<T> {
    type Item = &'static T;
    type IntoIter = Empty<&'static T>;

    fn into_iter(self) -> Empty<&'static T> {
        core::iter::empty()
    }
}
