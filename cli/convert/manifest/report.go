package manifest

import (
	"errors"
	"fmt"
	"strings"
)

// Report collects what can't be converted, and what users should know of the
// rest.
type Report struct {
	Errors []string
	Notes  []string
}

// Err is all errors as one; nil when there are none.
func (r *Report) Err() error {
	if len(r.Errors) == 0 {
		return nil
	}
	return errors.New(strings.Join(r.Errors, "\n"))
}

// File tells of a file that can't be read.
func (r *Report) File(file, format string, args ...any) {
	r.Errors = append(r.Errors, file+": "+fmt.Sprintf(format, args...))
}

// Error tells why a field of an object can't be converted.
func (r *Report) Error(o *Object, field, format string, args ...any) {
	r.Errors = once(r.Errors, place(o, field)+fmt.Sprintf(format, args...))
}

// Note tells how something is converted that users would not expect.
func (r *Report) Note(o *Object, field, format string, args ...any) {
	r.Notes = once(r.Notes, place(o, field)+fmt.Sprintf(format, args...))
}

func once(list []string, text string) []string {
	for _, t := range list {
		if t == text {
			return list
		}
	}
	return append(list, text)
}

func place(o *Object, field string) string {
	s := o.File + ": " + o.String() + ": "
	if field != "" {
		s += field + ": "
	}
	return s
}

// At is a field of an object, for what has to be told of it.
type At struct {
	Object *Object
	Field  string
	Report *Report
}

// In is a field below.
func (a At) In(format string, args ...any) At {
	sub := fmt.Sprintf(format, args...)
	if a.Field != "" && !strings.HasPrefix(sub, "[") {
		sub = "." + sub
	}
	a.Field += sub
	return a
}

// Error tells why the field can't be converted.
func (a At) Error(format string, args ...any) { a.Report.Error(a.Object, a.Field, format, args...) }

// Note tells how the field is converted.
func (a At) Note(format string, args ...any) { a.Report.Note(a.Object, a.Field, format, args...) }
