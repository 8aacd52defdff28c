//! One table for a terminal and for a page.

use comfy_table::CellAlignment;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use maud::Markup;

use crate::page::tables::Table;

/// What stands in a table.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Words(String),
    /// What rows are sorted by, and what is shown.
    Number(f64, String),
}

pub(super) fn words(text: &str) -> Cell {
    Cell::Words(text.to_owned())
}

/// A number with so many digits after the point.
pub(super) fn number_cell(value: f64, decimals: usize) -> Cell {
    Cell::Number(value, format!("{value:.decimals$}"))
}

/// A table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Grid {
    pub(super) heads: Vec<&'static str>,
    pub(super) rows: Vec<Vec<Cell>>,
}

impl Grid {
    pub(super) fn text(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(&self.heads);
        for row in &self.rows {
            let cell = |cell: &Cell| match cell {
                Cell::Words(text) => comfy_table::Cell::new(text),
                Cell::Number(_, text) => comfy_table::Cell::new(text).set_alignment(CellAlignment::Right),
            };
            table.add_row(row.iter().map(cell).collect::<Vec<_>>());
        }
        table.to_string()
    }

    pub(super) fn html(&self) -> Markup {
        let mut table = Table::new(&self.heads);
        for row in &self.rows {
            table.row(None);
            for cell in row {
                match cell {
                    Cell::Words(text) => table.words(text),
                    Cell::Number(value, text) => table.value(*value, text, false),
                }
            }
        }
        table.done()
    }
}
