// Package version says which build of Hauberk a binary is. It owns these two
// words only; what speaks which protocol version is for the api package.
package version

import "strings"

// Version and Commit are set when a binary is linked, by
//
//	-ldflags "-X github.com/hauberk-mesh/hauberk/internal/version.Version=v1.2.3 -X …Commit=abc"
//
// and are constant afterwards.
var (
	Version = "dev"
	Commit  = ""
)

// commitDigits are enough to name a commit to people.
const commitDigits = 12

// String is the form for people: "v1.2.3 (0123456789ab)", with "-dirty" after the
// commit if the checkout had changes, without it where the build does not know.
func String() string {
	if Commit == "" {
		return Version
	}
	hash, dirty, changed := strings.Cut(Commit, "-")
	if len(hash) > commitDigits {
		hash = hash[:commitDigits]
	}
	if changed {
		hash += "-" + dirty
	}
	return Version + " (" + hash + ")"
}
