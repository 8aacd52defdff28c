//! Lines of a few contenders over one number, for pages other than the lab's.

use maud::Markup;

use super::axis::Axis;
use super::chart::{Chart, Dot, Labels, Series};
use super::scene::{Ink, MARKS, Mark, Point, Scene, TONES};
use super::svg;

/// What a line stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Our contender.
    Ours,
    /// Another one; those with the same number have the same colour.
    Rival(usize),
    /// A bound that lines should stay below.
    Bound,
}

/// A line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Curve {
    /// What stands at its end.
    pub(crate) name: String,
    /// What it stands for.
    pub(crate) part: Part,
    /// Whether it is interrupted.
    pub(crate) dashed: bool,
    /// Its points, with what a person reads who points at each.
    pub(crate) points: Vec<(Point, String)>,
}

/// Lines over the same axes; upwards logarithmic if they span much.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Curves {
    /// What the data say.
    pub(crate) title: String,
    /// What is drawn against what.
    pub(crate) subtitle: String,
    /// What is to the right, with its unit.
    pub(crate) x_title: String,
    /// What is upwards, with its unit.
    pub(crate) y_title: String,
    /// The lines, the first below the others.
    pub(crate) curves: Vec<Curve>,
}

impl Curves {
    /// The picture as a file of its own.
    pub(crate) fn file(&self) -> String {
        svg::file(&self.scene())
    }

    /// The picture as an element of a page that has the lab's style.
    pub(crate) fn element(&self) -> Markup {
        svg::element(&self.scene())
    }

    fn scene(&self) -> Scene {
        let points = || self.curves.iter().flat_map(|curve| curve.points.iter().map(|(at, _)| *at));
        Chart {
            title: self.title.clone(),
            subtitle: self.subtitle.clone(),
            width: 820.0,
            height: 460.0,
            x: Axis::showing(points().map(|(x, _)| x), f64::INFINITY, false),
            y: Axis::showing(points().map(|(_, y)| y), 6.0, true),
            x_title: self.x_title.clone(),
            y_title: self.y_title.clone(),
            series: self.curves.iter().map(series).collect(),
            labels: Labels::Ends,
        }
        .scene()
    }
}

fn series(curve: &Curve) -> Series {
    let (ink, mark, width) = match curve.part {
        Part::Ours => (Ink::Ours, Mark::Circle, 3.0),
        Part::Rival(which) => (Ink::Tone(which % TONES), MARKS[which % MARKS.len()], 1.6),
        Part::Bound => (Ink::Muted, Mark::Circle, 1.3),
    };
    let dot = |(at, tip): &(Point, String)| Dot { at: *at, tip: tip.clone(), size: 4.0, opacity: 1.0 };
    Series {
        contender: Some(curve.name.clone()),
        label: Some(curve.name.clone()),
        mark,
        width,
        dashed: curve.dashed,
        dots: if curve.part == Part::Bound { Vec::new() } else { curve.points.iter().map(dot).collect() },
        ..Series::line(ink, curve.points.iter().map(|(at, _)| *at).collect())
    }
}
