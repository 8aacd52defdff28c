use super::panels::{Panel, SETTINGS, Setting, Spread, TIGHT, problem};
use super::*;
