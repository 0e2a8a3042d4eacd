// Package identity owns what a process of the mesh knows of identities: its
// own key and X.509-SVID, how they are fetched from the CA and renewed, the
// trust roots, the strict reading of a peer's certificate, and the TLS
// configurations made of these. Private keys stay in memory.
//
// It does not sign certificates (control/ca does) and does not decide what an
// identity may do (policy does).
package identity
