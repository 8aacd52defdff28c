//! Names beside what they name, so that nobody has to look up a colour.

use super::chart::{Frame, SMALL};
use super::scene::{Anchor, Ink, Point, Scene, Shape, text_width};

/// Distance of a label's base line from the next.
const LINE: f64 = 15.0;

/// A name and what it names.
#[derive(Clone, Debug)]
pub(super) struct Label {
    /// The name.
    pub(super) text: String,
    /// The point that it names.
    pub(super) at: Point,
    /// Its colour.
    pub(super) ink: Ink,
    /// The contender that it names.
    pub(super) contender: Option<String>,
    /// Whether it is bold.
    pub(super) bold: bool,
}

/// How wide a label is.
pub(super) fn width(text: &str) -> f64 {
    text_width(text, SMALL, false)
}

fn write(scene: &mut Scene, label: &Label, at: Point, anchor: Anchor) {
    scene.text(label.ink, at, SMALL, anchor, label.bold, &label.text).contender.clone_from(&label.contender);
}

fn leader(scene: &mut Scene, label: &Label, to: Point) {
    let line = Shape::Line { points: vec![label.at, to], width: 0.8, dashed: false };
    scene.add(label.ink, line).faint(0.6).contender.clone_from(&label.contender);
}

/// Labels in a column at the frame's right, as near to their points' heights as fits.
pub(super) fn column(scene: &mut Scene, mut labels: Vec<Label>, frame: &Frame) {
    labels.sort_by(|a, b| a.at.1.total_cmp(&b.at.1));
    let mut heights: Vec<f64> = Vec::new();
    for label in &labels {
        let above = heights.last().map_or(f64::NEG_INFINITY, |y| y + LINE);
        heights.push(label.at.1.max(above));
    }
    // What was pushed out below moves up, and pushes what is above it.
    let mut limit = frame.bottom;
    for y in heights.iter_mut().rev() {
        *y = y.min(limit);
        limit = *y - LINE;
    }
    for (label, y) in labels.iter().zip(heights) {
        leader(scene, label, (frame.right + 10.0, y));
        write(scene, label, (frame.right + 13.0, y + 4.0), Anchor::Start);
    }
}

#[derive(Clone, Copy)]
struct Rect {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Rect {
    fn overlap(&self, other: &Rect) -> f64 {
        let x = self.right.min(other.right) - self.left.max(other.left);
        let y = self.bottom.min(other.bottom) - self.top.max(other.top);
        x.max(0.0) * y.max(0.0)
    }
}

/// Labels beside their points, where they hide the least; the first have the first choice.
pub(super) fn near(scene: &mut Scene, labels: Vec<Label>, marks: &[(Point, f64)], frame: &Frame) {
    let around = |(at, size): &(Point, f64)| Rect {
        left: at.0 - size,
        right: at.0 + size,
        top: at.1 - size,
        bottom: at.1 + size,
    };
    let marks: Vec<Rect> = marks.iter().map(around).collect();
    let mut taken: Vec<Rect> = Vec::new();
    for label in labels {
        let w = text_width(&label.text, SMALL, label.bold);
        let mut best: Option<(f64, Rect, f64)> = None;
        for distance in [9.0, 16.0, 26.0, 40.0, 58.0, 80.0] {
            for step in 0..16 {
                let (sin, cos) = (std::f64::consts::TAU * f64::from(step) / 16.0).sin_cos();
                // The text's nearest edge is at the distance: sideways it begins or ends there, above and below it is centred.
                let centre = (label.at.0 + cos * (distance + w / 2.0), label.at.1 + sin * (distance + 5.0));
                let this = Rect {
                    left: centre.0 - w / 2.0,
                    right: centre.0 + w / 2.0,
                    top: centre.1 - 7.0,
                    bottom: centre.1 + 6.0,
                };
                let outside = this.left < frame.left || this.right > frame.right + 12.0;
                let outside = outside || this.top < frame.top - 4.0 || this.bottom > frame.bottom;
                let hidden: f64 = taken.iter().map(|other| this.overlap(other) * 8.0).sum::<f64>()
                    + marks.iter().map(|mark| this.overlap(mark)).sum::<f64>();
                let penalty = hidden + distance + if outside { 1e5 } else { 0.0 } + (1.0 - cos) * 2.0;
                if best.as_ref().is_none_or(|(least, ..)| penalty < *least) {
                    best = Some((penalty, this, distance));
                }
            }
        }
        let Some((_, place, distance)) = best else { continue };
        taken.push(place);
        if distance > 20.0 {
            let x = label.at.0.clamp(place.left, place.right);
            let y = label.at.1.clamp(place.top, place.bottom);
            leader(scene, &label, (x, y));
        }
        write(scene, &label, (place.left, place.bottom - 2.0), Anchor::Start);
    }
}
