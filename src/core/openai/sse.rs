//! Lines of server-sent events, as the HTML standard defines them (section 9.2.6), cut anywhere and without keeping them.

/// What came next in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// More of the event's data.
    Data(&'a [u8]),
    /// A line of data ended; the event goes on until its end.
    DataEnd,
    /// A line of data ended, and the event's data is `[DONE]`.
    Done,
    /// The event's name is `error`.
    Error,
    /// The blank line after an event.
    EventEnd,
}

/// Where in the stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Events {
    line: EventLine,
    /// The field's name, as far as it is read and as far as it matters.
    field: Vec<u8>,
    /// The event's name, likewise.
    name: Vec<u8>,
    has_data: bool,
    done: Done,
    after_carriage_return: bool,
    /// Whether the first line is over, which may begin with a byte order mark.
    after_first_line: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum EventLine {
    #[default]
    Field,
    /// Behind the colon, where one space does not count.
    Colon(EventField),
    Value(EventField),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventField {
    Data,
    Event,
    Other,
}

/// How the event's data compares with `[DONE]`: so many bytes are alike, or none can be.
#[derive(Clone, Copy, Debug)]
struct Done(Option<usize>);

const DONE: &[u8] = b"[DONE]";
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
/// Longer than all names of fields and events that matter, a byte order mark included.
const NAME_BYTES_MAX: usize = 9;

impl Events {
    /// Takes the next token off the front of `rest`; None when all of it is used up.
    pub(super) fn next<'a>(&mut self, rest: &mut &'a [u8]) -> Option<Token<'a>> {
        while let Some((&byte, after)) = rest.split_first() {
            let follows_carriage_return = std::mem::take(&mut self.after_carriage_return);
            let token = match (byte, self.line) {
                (b'\n', _) if follows_carriage_return => {
                    *rest = after;
                    None
                }
                (b'\n' | b'\r', _) => {
                    self.after_carriage_return = byte == b'\r';
                    *rest = after;
                    self.end_line()
                }
                (b':', EventLine::Field) => {
                    self.line = EventLine::Colon(self.named());
                    *rest = after;
                    None
                }
                (_, EventLine::Field) => {
                    keep(&mut self.field, &[byte]);
                    *rest = after;
                    None
                }
                (_, EventLine::Colon(field)) => {
                    if byte == b' ' {
                        *rest = after;
                    }
                    self.begin_value(field)
                }
                (_, EventLine::Value(field)) => {
                    let length = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
                    let (value, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
                    *rest = after;
                    self.value(field, value)
                }
            };
            if token.is_some() {
                return token;
            }
        }
        None
    }

    /// The field whose name was read.
    fn named(&self) -> EventField {
        let name = self.field.as_slice();
        let name = if self.after_first_line { name } else { name.strip_prefix(BYTE_ORDER_MARK).unwrap_or(name) };
        match name {
            b"data" => EventField::Data,
            b"event" => EventField::Event,
            _ => EventField::Other,
        }
    }

    fn begin_value<'a>(&mut self, field: EventField) -> Option<Token<'a>> {
        self.line = EventLine::Value(field);
        match field {
            EventField::Event => self.name.clear(),
            // Lines of data are joined by line feeds.
            EventField::Data if std::mem::replace(&mut self.has_data, true) => return self.value(field, b"\n"),
            EventField::Data | EventField::Other => {}
        }
        None
    }

    fn value<'a>(&mut self, field: EventField, value: &'a [u8]) -> Option<Token<'a>> {
        match field {
            EventField::Data => {
                self.done = self.done.after(value);
                Some(Token::Data(value))
            }
            EventField::Event => {
                keep(&mut self.name, value);
                None
            }
            EventField::Other => None,
        }
    }

    fn end_line<'a>(&mut self) -> Option<Token<'a>> {
        let token = match self.line {
            EventLine::Field if self.field.is_empty() => {
                (self.has_data, self.done) = (false, Done::default());
                self.name.clear();
                Some(Token::EventEnd)
            }
            EventLine::Colon(EventField::Data) | EventLine::Value(EventField::Data) => {
                Some(if self.done.is_whole() { Token::Done } else { Token::DataEnd })
            }
            EventLine::Value(EventField::Event) if self.name == b"error" => Some(Token::Error),
            _ => None,
        };
        self.line = EventLine::Field;
        self.field.clear();
        self.after_first_line = true;
        token
    }
}

impl Default for Done {
    fn default() -> Done {
        Done(Some(0))
    }
}

impl Done {
    fn after(self, data: &[u8]) -> Done {
        Done(self.0.and_then(|alike| DONE.get(alike..)?.starts_with(data).then_some(alike + data.len())))
    }

    fn is_whole(self) -> bool {
        self.0 == Some(DONE.len())
    }
}

fn keep(name: &mut Vec<u8>, bytes: &[u8]) {
    name.extend(bytes.iter().take(NAME_BYTES_MAX.saturating_sub(name.len())));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// The tokens as text: data as it is, `;` for the end of a data line, `D` for done, `E` for error, `|` for an event's end.
    fn tokens<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> String {
        let mut events = Events::default();
        let mut text = String::new();
        for mut piece in pieces {
            while let Some(token) = events.next(&mut piece) {
                match token {
                    Token::Data(data) => text.push_str(&String::from_utf8_lossy(data)),
                    Token::DataEnd => text.push(';'),
                    Token::Done => text.push('D'),
                    Token::Error => text.push('E'),
                    Token::EventEnd => text.push('|'),
                }
            }
        }
        text
    }

    #[test]
    fn lines() {
        let rows = [
            ("", ""),
            ("data: {}\n\n", "{};|"),
            ("data:{}\r\n\r\n", "{};|"),
            ("data:  x\r\r", " x;|"),
            ("data: a\ndata: b\n\n", "a;\nb;|"),
            (": keep-alive\n\n", "|"),
            (":\n\n", "|"),
            ("event: error\ndata: x\n\n", "Ex;|"),
            ("event: errors\ndata: x\n\n", "x;|"),
            ("event: a much longer name\ndata: x\n\n", "x;|"),
            ("id: 1\nretry: 2\ndata\ndatas: x\nevent:\n\n", "|"),
            ("data: [DONE]\n\n", "[DONE]D|"),
            ("data: [DONE]\n", "[DONE]D"),
            ("data: [DONE]", "[DONE]"),
            ("data: [DONE].\n\n", "[DONE].;|"),
            ("data: x\n\ndata: [DONE]\n\n", "x;|[DONE]D|"),
            ("data: [DO\ndata: NE]\n\n", "[DO;\nNE];|"),
            ("data:\n\n", ";|"),
            ("no colon at all\n\n", "|"),
            ("data: cut", "cut"),
            ("\u{feff}data: x\n\n\u{feff}data: y\n\n", "x;||"),
            ("\u{feff}event: error\n\n", "E|"),
            ("\u{feff}event_: error\n\n", "|"),
        ];
        for (stream, expected) in rows {
            assert_eq!(tokens([stream.as_bytes()].into_iter()), expected, "{stream:?} whole");
            assert_eq!(tokens(stream.as_bytes().chunks(1)), expected, "{stream:?} byte by byte");
        }
    }
}
