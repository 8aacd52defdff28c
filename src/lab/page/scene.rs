//! A picture as shapes with meanings for colours: one description for HTML, SVG and PNG.

/// What a shape's colour means; the colours themselves are in `style.css` and, for files, in [`Ink::rgb`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ink {
    /// Behind everything.
    Ground,
    /// Words.
    Text,
    /// Words that step back, axes.
    Muted,
    /// Lines to read values by.
    Grid,
    /// Our contender.
    Ours,
    /// The paper's contender.
    Paper,
    /// Variants of the paper's contender.
    Kin,
    /// The contender that knows everything.
    Oracle,
    /// Another contender, one of [`TONES`] tones.
    Tone(usize),
    /// A model, from the smallest (0) to the largest (1), in steps of an eighth.
    Model(usize),
}

/// Tones for contenders that are neither ours nor the paper's.
pub(crate) const TONES: usize = 6;
/// Steps of the ramp of models.
pub(crate) const MODELS: usize = 8;

impl Ink {
    /// The name of its colour in style sheets.
    pub(crate) fn class(self) -> String {
        match self {
            Ink::Ground => "ground".into(),
            Ink::Text => "text".into(),
            Ink::Muted => "muted".into(),
            Ink::Grid => "grid".into(),
            Ink::Ours => "ours".into(),
            Ink::Paper => "paper".into(),
            Ink::Kin => "kin".into(),
            Ink::Oracle => "oracle".into(),
            Ink::Tone(tone) => format!("tone{}", tone % TONES),
            Ink::Model(step) => format!("model{}", step % MODELS),
        }
    }

    /// Its colour on a light ground. Ours and the paper's are Okabe and Ito's blue and vermilion, which colour-blind people
    /// tell apart; the ramp of models is of growing darkness.
    pub(crate) fn rgb(self) -> (u8, u8, u8) {
        const RAMP: [(u8, u8, u8); MODELS] = [
            (0xf6, 0xd7, 0x6b),
            (0xb9, 0xd0, 0x6c),
            (0x79, 0xbd, 0x7f),
            (0x41, 0xa3, 0x8e),
            (0x2c, 0x82, 0x93),
            (0x36, 0x5f, 0x8d),
            (0x45, 0x3c, 0x7d),
            (0x3f, 0x19, 0x58),
        ];
        const MUTED: [(u8, u8, u8); TONES] = [
            (0x4f, 0x8f, 0x8b),
            (0x8d, 0x7a, 0xb5),
            (0x9a, 0x86, 0x3a),
            (0xb0, 0x6f, 0x93),
            (0x6b, 0x8c, 0x4e),
            (0x6f, 0x83, 0xa3),
        ];
        match self {
            Ink::Ground => (0xff, 0xff, 0xff),
            Ink::Text => (0x1a, 0x1f, 0x26),
            Ink::Muted => (0x64, 0x6d, 0x78),
            Ink::Grid => (0xe4, 0xe7, 0xeb),
            Ink::Ours => (0x00, 0x66, 0xb8),
            Ink::Paper => (0xd5, 0x4e, 0x00),
            Ink::Kin => (0xe2, 0xa4, 0x7c),
            Ink::Oracle => (0x83, 0x89, 0x91),
            Ink::Tone(tone) => MUTED[tone % TONES],
            Ink::Model(step) => RAMP[step % MODELS],
        }
    }

    /// Every ink.
    pub(crate) fn all() -> Vec<Ink> {
        let named = [Ink::Ground, Ink::Text, Ink::Muted, Ink::Grid, Ink::Ours, Ink::Paper, Ink::Kin, Ink::Oracle];
        named.into_iter().chain((0..TONES).map(Ink::Tone)).chain((0..MODELS).map(Ink::Model)).collect()
    }
}

/// Which end of a text stands at its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    /// Its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// A point: right and down, in the picture's units.
pub(crate) type Point = (f64, f64);

/// One thing to draw.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    /// A line through points.
    Line {
        /// The points.
        points: Vec<Point>,
        /// Its width.
        width: f64,
        /// Whether it is interrupted.
        dashed: bool,
    },
    /// A filled polygon.
    Area {
        /// Its corners.
        points: Vec<Point>,
        /// Whether a rim of the ground's colour keeps it apart from what is below.
        rim: bool,
    },
    /// One line of text.
    Text {
        /// Where its base line stands.
        at: Point,
        /// The words.
        text: String,
        /// Its height.
        size: f64,
        /// Which end stands at the point.
        anchor: Anchor,
        /// Whether it is bold.
        bold: bool,
    },
}

/// A shape with its colour and what it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    /// The shape.
    pub(crate) shape: Shape,
    /// Its colour.
    pub(crate) ink: Ink,
    /// 0 invisible to 1 opaque.
    pub(crate) opacity: f64,
    /// The contender that it shows.
    pub(crate) contender: Option<String>,
    /// What a person reads who points at it.
    pub(crate) tip: Option<String>,
}

/// A picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scene {
    /// Its width.
    pub(crate) width: f64,
    /// Its height.
    pub(crate) height: f64,
    /// What it says, for people who do not see it.
    pub(crate) title: String,
    /// What to draw, the first below the others.
    pub(crate) items: Vec<Item>,
}

impl Scene {
    /// Adds a shape and gives it back, to be changed.
    pub(crate) fn add(&mut self, ink: Ink, shape: Shape) -> &mut Item {
        self.items.push(Item { shape, ink, opacity: 1.0, contender: None, tip: None });
        let last = self.items.len() - 1;
        &mut self.items[last]
    }

    /// Adds a straight line.
    pub(crate) fn rule(&mut self, ink: Ink, from: Point, to: Point, width: f64) {
        self.add(ink, Shape::Line { points: vec![from, to], width, dashed: false });
    }

    /// Adds a text.
    pub(crate) fn text(&mut self, ink: Ink, at: Point, size: f64, anchor: Anchor, bold: bool, text: &str) -> &mut Item {
        self.add(ink, Shape::Text { at, text: text.to_owned(), size, anchor, bold })
    }

    /// Adds text over lines that are at most `width` wide, and gives back where the next line would stand.
    pub(crate) fn paragraph(&mut self, ink: Ink, at: Point, width: f64, size: f64, bold: bool, text: &str) -> f64 {
        let mut y = at.1;
        for line in wrapped(text, width, size, bold) {
            self.text(ink, (at.0, y), size, Anchor::Start, bold, &line);
            y += size * 1.3;
        }
        y
    }
}

impl Item {
    /// Says whose it is.
    pub(crate) fn of_contender(&mut self, contender: &str) -> &mut Item {
        self.contender = Some(contender.to_owned());
        self
    }

    /// Says what it shows.
    pub(crate) fn says(&mut self, tip: &str) -> &mut Item {
        self.tip = Some(tip.to_owned());
        self
    }

    /// Lets through what is below it.
    pub(crate) fn faint(&mut self, opacity: f64) -> &mut Item {
        self.opacity = opacity;
        self
    }
}

/// About how wide a text is: fonts differ, this is on the safe side of the usual ones.
pub(crate) fn text_width(text: &str, size: f64, bold: bool) -> f64 {
    let narrow = |c: char| ".,:;'|!iljtfI()[] ".contains(c);
    let units: f64 = text.chars().map(|c| if narrow(c) { 0.36 } else { 0.6 }).sum();
    units * size * if bold { 1.08 } else { 1.0 }
}

fn wrapped(text: &str, width: f64, size: f64, bold: bool) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if text_width(line, size, bold) + text_width(word, size, bold) + size * 0.36 <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// How a contender's points look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// A disc.
    Circle,
    /// A square on its corner.
    Diamond,
    /// A square.
    Square,
    /// A triangle.
    Up,
    /// A triangle on its corner.
    Down,
    /// An upright cross.
    Plus,
    /// A slanted cross.
    Cross,
    /// A pentagon.
    Pentagon,
}

/// Marks for contenders that are neither ours nor the paper's.
pub(crate) const MARKS: [Mark; 7] =
    [Mark::Square, Mark::Up, Mark::Down, Mark::Plus, Mark::Cross, Mark::Pentagon, Mark::Diamond];

impl Mark {
    /// Its outline around a point; marks of the same size look about as large.
    pub(crate) fn outline(self, at: Point, size: f64) -> Vec<Point> {
        let regular = |corners: usize, turn: f64, radius: f64| -> Vec<Point> {
            let angle = |i: usize| turn + std::f64::consts::TAU * i as f64 / corners as f64;
            (0..corners)
                .map(|i| (at.0 + radius * size * angle(i).sin(), at.1 - radius * size * angle(i).cos()))
                .collect()
        };
        let cross = |turn: f64| -> Vec<Point> {
            const ARMS: [Point; 12] = [
                (-0.35, -1.15),
                (0.35, -1.15),
                (0.35, -0.35),
                (1.15, -0.35),
                (1.15, 0.35),
                (0.35, 0.35),
                (0.35, 1.15),
                (-0.35, 1.15),
                (-0.35, 0.35),
                (-1.15, 0.35),
                (-1.15, -0.35),
                (-0.35, -0.35),
            ];
            let (sin, cos) = turn.sin_cos();
            ARMS.iter().map(|(x, y)| (at.0 + size * (x * cos - y * sin), at.1 + size * (x * sin + y * cos))).collect()
        };
        let eighth = std::f64::consts::FRAC_PI_4;
        match self {
            Mark::Circle => regular(16, 0.0, 1.0),
            Mark::Diamond => regular(4, 0.0, 1.25),
            Mark::Square => regular(4, eighth, 1.25),
            Mark::Up => regular(3, 0.0, 1.35),
            Mark::Down => regular(3, 4.0 * eighth, 1.35),
            Mark::Plus => cross(0.0),
            Mark::Cross => cross(eighth),
            Mark::Pentagon => regular(5, 0.0, 1.15),
        }
    }
}
