// Package h2spec runs h2spec, the conformance tests of RFC 9113 and RFC 7541
// servers (github.com/summerwind/h2spec), in strict mode against both
// listeners of a real hauberk-proxy with a real application behind it.
package h2spec
