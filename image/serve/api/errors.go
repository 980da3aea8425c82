package api

import "errors"

// What the server refuses is one of these; a client sees 404, 403 and 422 with
// an [Error]. Anything else is the server's own trouble, a 500.
var (
	// ErrNotFound: there is no such host, attempt, roll-out or card.
	ErrNotFound = errors.New("not found")
	// ErrForbidden: whoever asks may not do that.
	ErrForbidden = errors.New("forbidden")
	// ErrInvalid: what was asked for makes no sense, or a file of the site has
	// a mistake; the text says which.
	ErrInvalid = errors.New("invalid")
)
