package exchange

import "github.com/hauberk-mesh/hauberk/proxy/http1"

// mayTrail reports a response that has no body by its request or status but says
// that there is one. Some servers do send it, later than anybody can wait for, and
// then it would stand before the next response of the connection.
func mayTrail(r *http1.Head) bool {
	if r.Framing != http1.NoBody || r.Status < 200 {
		return false
	}
	if r.Status == 204 || r.Status == 304 {
		return r.Length > 0
	}
	return r.Length != 0 // to HEAD, where none is known as little as some
}
