//! Places in lists, each of a type of its own: none can be taken for another, or for a number.

macro_rules! id {
    ($(#[$note:meta])* $kind:ident) => {
        $(#[$note])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $kind(usize);

        impl $kind {
            /// What stands at this place of its list.
            pub const fn new(index: usize) -> $kind {
                $kind(index)
            }

            /// Its place in its list.
            pub const fn index(self) -> usize {
                self.0
            }
        }
    };
}

id! {
    /// A policy: its place in the configuration's list.
    PolicyId
}

id! {
    /// A pool: its place in [`Fleet::pools`](super::Fleet::pools).
    PoolId
}

id! {
    /// A model: its place in [`Fleet::models`](super::Fleet::models).
    ModelId
}

id! {
    /// An instance: its place in [`Fleet::instances`](super::Fleet::instances).
    InstanceId
}
