//! A chart of series over two axes, as a scene.

use super::axis::Axis;
use super::labels::{self, Label};
use super::scene::{Anchor, Ink, Mark, Point, Scene, Shape};

/// Height of the words at axes and points.
pub(crate) const SMALL: f64 = 12.0;
/// Height of a chart's title.
pub(crate) const TITLE: f64 = 15.0;

/// A value to show as a mark.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dot {
    /// Where, in the axes' units.
    pub(crate) at: Point,
    /// What a person reads who points at it.
    pub(crate) tip: String,
    /// Half its width.
    pub(crate) size: f64,
    /// 0 invisible to 1 opaque.
    pub(crate) opacity: f64,
}

/// What is drawn in one colour.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    /// The contender that it shows, if it shows one.
    pub(crate) contender: Option<String>,
    /// What stands beside it.
    pub(crate) label: Option<String>,
    /// Where the label belongs, in the axes' units; `None` for where the line ends.
    pub(crate) label_at: Option<Point>,
    /// Its colour.
    pub(crate) ink: Ink,
    /// Its marks.
    pub(crate) mark: Mark,
    /// Its line's points, in the axes' units.
    pub(crate) line: Vec<Point>,
    /// Its line's width.
    pub(crate) width: f64,
    /// Whether its line is interrupted.
    pub(crate) dashed: bool,
    /// Whether everything between its line and the axis is filled.
    pub(crate) filled: bool,
    /// 0 invisible to 1 opaque, of its line or area.
    pub(crate) opacity: f64,
    /// Its values.
    pub(crate) dots: Vec<Dot>,
}

impl Series {
    /// A line of a colour, without marks and label.
    pub(crate) fn line(ink: Ink, line: Vec<Point>) -> Series {
        Series {
            contender: None,
            label: None,
            label_at: None,
            ink,
            mark: Mark::Circle,
            line,
            width: 1.6,
            dashed: false,
            filled: false,
            opacity: 1.0,
            dots: Vec::new(),
        }
    }
}

/// Where the series' labels stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Labels {
    /// In a column at the right, where the lines end.
    Ends,
    /// Beside their points.
    Near,
}

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chart {
    /// What the data say.
    pub(crate) title: String,
    /// What is drawn against what.
    pub(crate) subtitle: String,
    /// Its width.
    pub(crate) width: f64,
    /// Its height.
    pub(crate) height: f64,
    /// To the right.
    pub(crate) x: Axis,
    /// Upwards.
    pub(crate) y: Axis,
    /// What `x` is, with its unit.
    pub(crate) x_title: String,
    /// What `y` is, with its unit.
    pub(crate) y_title: String,
    /// What is drawn, the first below the others.
    pub(crate) series: Vec<Series>,
    /// Where labels stand.
    pub(crate) labels: Labels,
}

/// The part of a picture inside the axes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// Its left edge.
    pub(crate) left: f64,
    /// Its right edge.
    pub(crate) right: f64,
    /// Its upper edge.
    pub(crate) top: f64,
    /// Its lower edge.
    pub(crate) bottom: f64,
}

impl Chart {
    /// The chart drawn.
    pub(crate) fn scene(&self) -> Scene {
        let mut scene =
            Scene { width: self.width, height: self.height, title: self.title.clone(), ..Default::default() };
        let top = heading(&mut scene, &self.title, &self.subtitle);
        let y_ticks = self.y.ticks(if self.height < 280.0 { 4 } else { 6 });
        let words = y_ticks.iter().map(|(_, text)| labels::width(text)).fold(0.0, f64::max);
        let ends =
            self.series.iter().filter_map(|series| series.label.as_deref()).map(labels::width).fold(0.0, f64::max);
        let column = if self.labels == Labels::Ends && ends > 0.0 { ends + 22.0 } else { 14.0 };
        let frame =
            Frame { left: 14.0 + words, right: self.width - column, top: top + 22.0, bottom: self.height - 42.0 };
        self.draw_axes(&mut scene, &frame, &y_ticks);
        let place = |(x, y): Point| {
            (
                frame.left + self.x.place(x) * (frame.right - frame.left),
                frame.bottom - self.y.place(y) * (frame.bottom - frame.top),
            )
        };
        for series in &self.series {
            draw_line(&mut scene, series, &place, frame.bottom);
        }
        for series in &self.series {
            draw_dots(&mut scene, series, &place);
        }
        self.draw_labels(&mut scene, &frame, &place);
        scene
    }

    fn draw_axes(&self, scene: &mut Scene, frame: &Frame, y_ticks: &[(f64, String)]) {
        for (value, text) in y_ticks {
            let y = frame.bottom - self.y.place(*value) * (frame.bottom - frame.top);
            scene.rule(Ink::Grid, (frame.left, y), (frame.right, y), 1.0);
            scene.text(Ink::Muted, (frame.left - 6.0, y + 4.0), SMALL, Anchor::End, false, text);
        }
        let count = ((frame.right - frame.left) / 65.0) as usize;
        for (value, text) in self.x.ticks(count.clamp(3, 10)) {
            let x = frame.left + self.x.place(value) * (frame.right - frame.left);
            scene.rule(Ink::Grid, (x, frame.top), (x, frame.bottom + 4.0), 1.0);
            scene.text(Ink::Muted, (x, frame.bottom + 17.0), SMALL, Anchor::Middle, false, &text);
        }
        scene.rule(Ink::Muted, (frame.left, frame.bottom), (frame.right, frame.bottom), 1.0);
        scene.text(Ink::Muted, (4.0, frame.top - 8.0), SMALL, Anchor::Start, false, &self.y_title);
        scene.text(Ink::Muted, (frame.right, frame.bottom + 35.0), SMALL, Anchor::End, false, &self.x_title);
    }

    fn draw_labels(&self, scene: &mut Scene, frame: &Frame, place: &dyn Fn(Point) -> Point) {
        // What is drawn last, above the others, is the first to choose its place.
        let wanted = self.series.iter().rev().filter_map(|series| {
            let at = series.label_at.or(series.line.last().copied()).filter(is_known)?;
            Some(Label {
                text: series.label.clone()?,
                at: place(at),
                ink: if matches!(series.ink, Ink::Model(_)) { Ink::Muted } else { series.ink },
                contender: series.contender.clone(),
                bold: matches!(series.ink, Ink::Ours | Ink::Paper),
            })
        });
        match self.labels {
            Labels::Ends => labels::column(scene, wanted.collect(), frame),
            Labels::Near => {
                let dots = self.series.iter().flat_map(|series| &series.dots).filter(|dot| is_known(&dot.at));
                let lines = self.series.iter().flat_map(|series| along(&series.line, place)).map(|at| (at, 2.5));
                let marks: Vec<(Point, f64)> = dots.map(|dot| (place(dot.at), dot.size + 1.0)).chain(lines).collect();
                labels::near(scene, wanted.collect(), &marks, frame);
            }
        }
    }
}

/// Title and subtitle; gives back where they end.
pub(crate) fn heading(scene: &mut Scene, title: &str, subtitle: &str) -> f64 {
    let width = scene.width - 8.0;
    let mut y = 16.0;
    if !title.is_empty() {
        y = scene.paragraph(Ink::Text, (4.0, y), width, TITLE, true, title);
    }
    if !subtitle.is_empty() {
        y = scene.paragraph(Ink::Muted, (4.0, y), width, SMALL, false, subtitle);
    }
    y
}

fn draw_line(scene: &mut Scene, series: &Series, place: &dyn Fn(Point) -> Point, bottom: f64) {
    let mut points: Vec<Point> = series.line.iter().copied().filter(is_known).map(place).collect();
    if points.len() < 2 {
        return;
    }
    let shape = if series.filled {
        points.push((points[points.len() - 1].0, bottom));
        points.push((points[0].0, bottom));
        Shape::Area { points, rim: false }
    } else {
        Shape::Line { points, width: series.width, dashed: series.dashed }
    };
    let item = scene.add(series.ink, shape).faint(series.opacity);
    item.contender.clone_from(&series.contender);
    item.tip.clone_from(&series.contender);
}

fn draw_dots(scene: &mut Scene, series: &Series, place: &dyn Fn(Point) -> Point) {
    for dot in series.dots.iter().filter(|dot| is_known(&dot.at)) {
        let at = place(dot.at);
        let mark = Shape::Area { points: series.mark.outline(at, dot.size), rim: true };
        let item = scene.add(series.ink, mark).faint(dot.opacity).says(&dot.tip);
        item.contender.clone_from(&series.contender);
    }
}

/// Whether both coordinates are numbers: what no request answered has no mean.
fn is_known(at: &Point) -> bool {
    at.0.is_finite() && at.1.is_finite()
}

/// Points close to each other along a line.
fn along(line: &[Point], place: &dyn Fn(Point) -> Point) -> Vec<Point> {
    const STEP: f64 = 8.0;
    let corners: Vec<Point> = line.iter().copied().filter(is_known).map(place).collect();
    let between = |pair: &[Point]| {
        let (from, to) = (pair[0], pair[1]);
        let steps = ((to.0 - from.0).hypot(to.1 - from.1) / STEP).ceil().max(1.0);
        let part_of_way = move |i: usize| i as f64 / steps;
        (0..steps as usize)
            .map(move |i| (from.0 + (to.0 - from.0) * part_of_way(i), from.1 + (to.1 - from.1) * part_of_way(i)))
    };
    corners.windows(2).flat_map(between).collect()
}
