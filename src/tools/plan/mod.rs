//! `routebalance plan FILE`: the best way to deploy models on GPUs for a rate, and what makes a gateway follow it.

pub mod apply;
pub mod check;
pub mod file;
pub mod measure;
pub mod page;
pub mod planned;
pub mod profiles;
pub mod sample;
pub mod table;
