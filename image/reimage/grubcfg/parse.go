package grubcfg

import (
	"errors"
	"fmt"
	"strings"
)

// word is one word of a command: parts that are joined when it is expanded.
type word []part

// part is a piece of text, or the name of a variable.
type part struct {
	text     string
	variable bool
	quoted   bool // in quotes, where an empty value is a word nevertheless
}

// statement is a command, or an if, or the definition of a function.
type statement struct {
	words []word
	// block is what stands in braces behind a menuentry or submenu.
	block []statement

	// branches of an if: each body runs when its condition is the first to
	// succeed; a nil condition is the else.
	branches []branch

	function string // its name
	body     []statement
}

type branch struct{ condition, body []statement }

// token is a word, or an end of a command ("\n", ";"), or the end of the text.
type token struct {
	word word
	end  string
	eof  bool
}

// bare is the word as it stands, when nothing of it is quoted or a variable:
// only such words can be keywords.
func (t token) bare() string {
	if len(t.word) == 1 && !t.word[0].variable && !t.word[0].quoted {
		return t.word[0].text
	}
	return ""
}

type parser struct {
	text  string
	at    int
	depth int
	ahead *token
}

var errEnd = errors.New("it ends in the middle")

// deepest is how deep blocks may be nested.
const deepest = 64

func (p *parser) errorf(format string, args ...any) error {
	line := 1 + strings.Count(p.text[:min(p.at, len(p.text))], "\n")
	return fmt.Errorf("line %d: %w", line, fmt.Errorf(format, args...))
}

// next reads one token.
func (p *parser) next() (token, error) {
	if p.ahead != nil {
		t := *p.ahead
		p.ahead = nil
		return t, nil
	}
	for p.at < len(p.text) {
		switch c := p.text[p.at]; {
		case c == ' ' || c == '\t' || c == '\r':
			p.at++
		case strings.HasPrefix(p.text[p.at:], "\\\n"):
			p.at += 2
		case c == '#':
			for p.at < len(p.text) && p.text[p.at] != '\n' {
				p.at++
			}
		case c == '\n' || c == ';':
			p.at++
			return token{end: string(c)}, nil
		default:
			return p.word()
		}
	}
	return token{eof: true}, nil
}

func (p *parser) word() (token, error) {
	var w word
	var plain strings.Builder
	quoted := false // something of plain was escaped
	flush := func() {
		if plain.Len() > 0 {
			w = append(w, part{text: plain.String(), quoted: quoted})
			plain.Reset()
			quoted = false
		}
	}
	for p.at < len(p.text) {
		switch c := p.text[p.at]; c {
		case ' ', '\t', '\r', '\n', ';':
			flush()
			return token{word: w}, nil
		case '\'':
			end := strings.IndexByte(p.text[p.at+1:], '\'')
			if end < 0 {
				return token{}, p.errorf("a single quote is not closed: %w", errEnd)
			}
			flush()
			w = append(w, part{text: p.text[p.at+1 : p.at+1+end], quoted: true})
			p.at += end + 2
		case '"':
			flush()
			parts, err := p.doubleQuoted()
			if err != nil {
				return token{}, err
			}
			w = append(w, parts...)
		case '\\':
			if p.at+1 < len(p.text) {
				if p.text[p.at+1] != '\n' {
					plain.WriteByte(p.text[p.at+1])
					quoted = true
				}
				p.at++
			}
			p.at++
		case '$':
			flush()
			w = append(w, p.variable(false))
		default:
			plain.WriteByte(c)
			p.at++
		}
	}
	flush()
	return token{word: w}, nil
}

func (p *parser) doubleQuoted() ([]part, error) {
	p.at++
	parts := []part{{quoted: true}} // so that "" is a word
	var plain strings.Builder
	for p.at < len(p.text) {
		switch c := p.text[p.at]; {
		case c == '"':
			p.at++
			return append(parts, part{text: plain.String(), quoted: true}), nil
		case c == '\\' && p.at+1 < len(p.text) && strings.IndexByte("\\\"$\n", p.text[p.at+1]) >= 0:
			if p.text[p.at+1] != '\n' {
				plain.WriteByte(p.text[p.at+1])
			}
			p.at += 2
		case c == '$':
			parts = append(parts, part{text: plain.String(), quoted: true}, p.variable(true))
			plain.Reset()
		default:
			plain.WriteByte(c)
			p.at++
		}
	}
	return nil, p.errorf("a double quote is not closed: %w", errEnd)
}

// variable reads $name, ${name} or $? at p.at; a dollar before anything else
// is itself.
func (p *parser) variable(quoted bool) part {
	rest := p.text[p.at+1:]
	if strings.HasPrefix(rest, "{") {
		if end := strings.IndexByte(rest, '}'); end > 0 {
			p.at += end + 2
			return part{text: rest[1:end], variable: true, quoted: quoted}
		}
	}
	n := 0
	for n < len(rest) && (rest[n] == '_' || rest[n] >= 'a' && rest[n] <= 'z' || rest[n] >= 'A' && rest[n] <= 'Z' || n > 0 && rest[n] >= '0' && rest[n] <= '9') {
		n++
	}
	if n == 0 && rest != "" && strings.IndexByte("?@#*0123456789", rest[0]) >= 0 {
		n = 1
	}
	p.at += 1 + n
	if n == 0 {
		return part{text: "$", quoted: true}
	}
	return part{text: rest[:n], variable: true, quoted: quoted}
}

// list reads statements up to one of the ending keywords, which it returns, or
// to the end of the text when there are none.
func (p *parser) list(ends ...string) ([]statement, string, error) {
	if p.depth++; p.depth > deepest {
		return nil, "", p.errorf("blocks are nested more than %d deep", deepest)
	}
	defer func() { p.depth-- }()
	var out []statement
	for {
		t, err := p.next()
		if err != nil {
			return nil, "", err
		}
		if t.eof {
			if len(ends) > 0 {
				return nil, "", p.errorf("%s is missing: %w", ends[0], errEnd)
			}
			return out, "", nil
		}
		if t.end != "" {
			continue
		}
		keyword := t.bare()
		for _, e := range ends {
			if keyword == e {
				return out, keyword, nil
			}
		}
		var s statement
		switch keyword {
		case "if":
			s, err = p.conditional()
		case "function":
			s, err = p.define()
		case "for", "while", "until":
			err = p.errorf("%s loops are not understood", keyword)
		case "then", "elif", "else", "fi", "}":
			err = p.errorf("%s is out of place", keyword)
		default:
			s, err = p.command(t)
		}
		if err != nil {
			return nil, "", err
		}
		out = append(out, s)
	}
}

func (p *parser) conditional() (statement, error) {
	var s statement
	for {
		condition, _, err := p.list("then")
		if err != nil {
			return s, err
		}
		body, end, err := p.list("fi", "elif", "else")
		if err != nil {
			return s, err
		}
		s.branches = append(s.branches, branch{condition, body})
		if end == "else" {
			body, _, err := p.list("fi")
			s.branches = append(s.branches, branch{nil, body})
			return s, err
		}
		if end == "fi" {
			return s, nil
		}
	}
}

func (p *parser) define() (statement, error) {
	name, err := p.next()
	if err != nil {
		return statement{}, err
	}
	open, err := p.skipEnds()
	if err != nil {
		return statement{}, err
	}
	if name.bare() == "" || open.bare() != "{" {
		return statement{}, p.errorf("a function needs a name and a block")
	}
	body, _, err := p.list("}")
	return statement{function: name.bare(), body: body}, err
}

// skipEnds returns the next word.
func (p *parser) skipEnds() (token, error) {
	for {
		t, err := p.next()
		if err != nil || t.end == "" {
			return t, err
		}
	}
}

// command reads a command whose first word is t, with its block.
func (p *parser) command(t token) (statement, error) {
	s := statement{words: []word{t.word}}
	takesBlock := t.bare() == "menuentry" || t.bare() == "submenu"
	for {
		t, err := p.next()
		if err != nil {
			return s, err
		}
		switch {
		case t.eof || t.end != "":
			return s, nil
		case takesBlock && t.bare() == "{":
			s.block, _, err = p.list("}")
			return s, err
		case t.bare() == "}":
			// "function x { insmod y }": the brace ends the block around.
			p.ahead = &t
			return s, nil
		}
		s.words = append(s.words, t.word)
	}
}
