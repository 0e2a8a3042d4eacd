package keystore

import (
	"fmt"
	"net/http"
)

// Error is the answer to a request that could not be carried out, in the JSON
// form of etcd's v2 API.
type Error struct {
	Code    int    `json:"errorCode"`
	Message string `json:"message"`
	Cause   string `json:"cause,omitempty"`
	Index   uint64 `json:"index"`
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s (%d): %s", e.Message, e.Code, e.Cause)
}

// The error codes of the v2 API that this store gives.
const (
	CodeKeyNotFound  = 100
	CodeTestFailed   = 101
	CodeNotFile      = 102
	CodeNotDir       = 104
	CodeNodeExist    = 105
	CodeRootReadOnly = 107
	CodeDirNotEmpty  = 108
	CodePrevValue    = 201
	CodeIndexNaN     = 203
	CodeInvalidField = 209
	CodeInvalidForm  = 210
	CodeStoreFull    = 300
)

var messages = map[int]string{
	CodeKeyNotFound:  "Key not found",
	CodeTestFailed:   "Compare failed",
	CodeNotFile:      "Not a file",
	CodeNotDir:       "Not a directory",
	CodeNodeExist:    "Key already exists",
	CodeRootReadOnly: "Root is read only",
	CodeDirNotEmpty:  "Directory not empty",
	CodePrevValue:    "PrevValue is Required in POST form",
	CodeIndexNaN:     "The given index in POST form is not a number",
	CodeInvalidField: "Invalid field",
	CodeInvalidForm:  "Invalid POST form",
	CodeStoreFull:    "Store is full",
}

// status is the HTTP status that carries a code.
func (e *Error) status() int {
	switch e.Code {
	case CodeKeyNotFound:
		return http.StatusNotFound
	case CodeTestFailed, CodeNodeExist:
		return http.StatusPreconditionFailed
	case CodeNotFile, CodeNotDir, CodeRootReadOnly, CodeDirNotEmpty:
		return http.StatusForbidden
	case CodeStoreFull:
		return http.StatusInsufficientStorage
	default:
		return http.StatusBadRequest
	}
}

func newError(code int, cause string, index uint64) *Error {
	return &Error{Code: code, Message: messages[code], Cause: cause, Index: index}
}
