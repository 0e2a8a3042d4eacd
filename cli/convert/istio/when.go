package istio

import (
	"strings"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
)

// when converts one further condition.
func (c *converter) when(at manifest.At, namespace string, w *condition, out *clause) {
	if len(w.Values)+len(w.NotValues) == 0 {
		at.Error("values or notValues are missing")
		return
	}
	if name, ok := headerName(w.Key); ok {
		c.header(at, name, w, out)
		return
	}
	values := at.In("values")
	switch w.Key {
	case "source.ip":
		addresses(at, "values", "notValues", w.Values, w.NotValues, out)
	case "source.namespace":
		c.identities(values, w.Values, w.NotValues, c.namespace, out)
	case "source.principal":
		c.identities(values, w.Values, w.NotValues, c.principal, out)
	case "source.serviceAccount":
		c.identities(values, w.Values, w.NotValues, func(at manifest.At, text string) []string { return c.serviceAccount(at, namespace, text) }, out)
	case "destination.port":
		ports(values, w.Values, w.NotValues, out)
	case "remote.ip":
		at.In("key").Error("%q: %s", w.Key, noRemote)
	case "destination.ip":
		at.In("key").Error("%q is the policy's own pod: select it by labels", w.Key)
	case "connection.sni":
		at.In("key").Error("%q: what a client asks for in its ClientHello proves nothing and is not read", w.Key)
	default:
		if strings.HasPrefix(w.Key, "request.auth.") {
			at.In("key").Error("%q: %s", w.Key, noTokens)
			return
		}
		at.In("key").Error("%q can't be converted", w.Key)
	}
}

// headerName reads request.headers[NAME].
func headerName(key string) (string, bool) {
	rest, ok := strings.CutPrefix(key, "request.headers[")
	name, closed := strings.CutSuffix(rest, "]")
	return strings.ToLower(name), ok && closed && name != ""
}

func (c *converter) header(at manifest.At, name string, w *condition, out *clause) {
	if strings.HasPrefix(name, ":") || name == "host" {
		at.In("key").Error("%q is no header of its own here: use methods, paths or hosts", w.Key)
		return
	}
	read := func(at manifest.At, list []string) conditions {
		h := v1alpha1.HeaderMatch{Name: name}
		for i, v := range list {
			if v == "*" {
				h.Values = nil
				break
			}
			if strings.HasPrefix(v, "*") || strings.HasSuffix(v, "*") {
				at.In("[%d]", i).Error("%q: values of headers are compared whole: name the values", v)
			}
			h.Values = append(h.Values, v)
		}
		if len(h.Values) > maxMethods {
			at.Error("a header is compared with at most %d values: split the rule", maxMethods)
		}
		return conditions{request: true, headers: []v1alpha1.HeaderMatch{h}}
	}
	at.Note("a header that comes several times is compared value by value, in Istio all of them at once")
	if len(w.Values) > 0 {
		out.add(at, read(at.In("values"), w.Values))
	}
	if len(w.NotValues) > 0 {
		out.yes.request = true
		out.except(read(at.In("notValues"), w.NotValues))
	}
}
